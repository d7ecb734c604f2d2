"""The verbs that have grown: one module a verb, each holding the thin function that the command line registers."""
