"""The saved model: names and roles of its files, configuration, ledger, reading, writing, card, comparison."""
