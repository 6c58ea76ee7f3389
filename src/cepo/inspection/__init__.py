"""The credit of rollouts under many methods at once: pages, the terminal form, measures against labels. Imports data and below."""
