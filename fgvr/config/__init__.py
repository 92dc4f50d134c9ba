"""The configuration: words in, one frozen, typed record out. Nothing outside of this package and the command line knows Hydra."""
