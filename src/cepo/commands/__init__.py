"""The commands of `cepo`: each module has `prepare(arguments)`, which refuses mistakes and returns the job."""

import warnings


def quiet_libraries() -> None:
    """Keep the progress bars and notes of the libraries below out of what a person reads."""
    import datasets
    import transformers

    # TRL's default, which does no harm where there is no accelerator.
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator is found")

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
