"""A package, so that `--method examples.new_method:METHOD` means this folder, whatever else is installed."""
