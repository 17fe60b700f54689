"""From a user's picture to files a user can open."""
