"""The tables, the two engines that hold them, and the few statements that must differ between them."""
