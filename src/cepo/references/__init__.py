"""The data of a group: rollouts, the references r+ and r- of each, and hints with them."""
