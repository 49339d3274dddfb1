"""Units that several folders count in."""

MIB = 2**20
