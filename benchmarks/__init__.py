"""Speed, memory and evidence for defaults, each a command that writes JSON."""
