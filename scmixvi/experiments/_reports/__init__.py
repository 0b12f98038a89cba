"""Tables and figures of each experiment, from its JSON."""
