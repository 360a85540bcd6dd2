"""ISO base media boxes, fragments and init segments: samples become standard MP4."""
