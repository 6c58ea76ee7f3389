"""What is wrong with a data set."""


class DatasetError(ValueError):
    """A dataset that cannot be trained on; the message names the column and the row."""
