"""Every performance figure we state, each a command."""
