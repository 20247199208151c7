"""Commands that are no verb of the Trainer: one file and one function each."""
