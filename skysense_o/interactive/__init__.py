"""One image at a time with a person before it: the prompt loop and the web page, and what both stand on."""
