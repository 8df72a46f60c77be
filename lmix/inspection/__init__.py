"""Look at what a mixed policy does: token by token on a page, or on the terminal."""
