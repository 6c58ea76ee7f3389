"""The Hub while a run trains: its repository before the first step, and its uploads."""

import logging
from pathlib import Path
from typing import Any

from trl import GRPOTrainer

from ..data.escape import one_line
from ..data.hub import hub_errors, upload_command

_logger = logging.getLogger(__name__)


class HubTrainer(GRPOTrainer):
    """TRL's trainer, which says in one line that the Hub cannot be reached, and goes on training."""

    def init_hf_repo(self, token=None):
        """Make the repository.

        Raises:
            HubError: If it cannot be made.
        """
        fix = f"leave it out and push later ({self._push_command()}), or log in (hf auth login)"
        with hub_errors("push_to_hub: the repository cannot be made on the Hub", fix):
            super().init_hf_repo(token=token)

    def push_to_hub(self, *args, **kwargs):
        """Upload the output directory.

        Raises:
            HubError: If that fails; the directory is complete.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=kwargs.get("token"))
        fix = f"push it later: {self._push_command()}"
        with hub_errors(f"the model is saved in {self.args.output_dir}, and was not pushed to the Hub", fix):
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder):
        """Uploads run in the background: one that failed is noticed at the next."""
        self._note_failed_uploads()
        super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self):
        super()._finish_current_push()
        self._note_failed_uploads()

    def _note_failed_uploads(self) -> None:
        in_progress: Any = getattr(self, "push_in_progress", None)
        jobs = [] if in_progress is None else in_progress.jobs
        ended = [job for job in jobs if job.done() and not job.cancelled()]
        errors = [error for job in ended if (error := job.exception()) is not None]
        if errors:
            _logger.warning("a checkpoint was not pushed to the Hub: %s", one_line(str(errors[0])))
            self.push_in_progress = None

    def _push_command(self) -> str:
        args = self.args
        repository = getattr(self, "hub_model_id", None) or args.hub_model_id or Path(args.output_dir).absolute().name
        return upload_command(repository, args.output_dir, private=bool(args.hub_private_repo))
