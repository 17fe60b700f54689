"""Label images made of boxes, points and scene classes."""
