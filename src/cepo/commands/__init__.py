"""The commands of `cepo`: `prepare(arguments)` of a module validates the options and returns the job to run."""

import warnings


def quiet_libraries() -> None:
    """Silence the progress bars and warnings of datasets, transformers and torch."""
    import datasets
    import transformers

    # TRL sets pin_memory, which has no effect without an accelerator.
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator is found")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
