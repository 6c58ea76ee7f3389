"""The credit of rollouts under many methods: pages, terminal, evidence statistics. Imports data and below."""
