"""From a user's image to files a user can open."""
