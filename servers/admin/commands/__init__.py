"""The commands of `dcs`, by subject: what is asked for, and how the answer is shown."""
