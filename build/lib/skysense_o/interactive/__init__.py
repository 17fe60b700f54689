"""Work on one image at a time with a user: the session, the prompt loop, and the web page."""
