"""The credit of rollouts under many methods: pages, terminal, measures against labels. Imports data and below."""
