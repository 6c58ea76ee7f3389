"""The data of a group: its rollouts, the answers r+ and r- of each, and the hints that carry them. Imports no room."""
