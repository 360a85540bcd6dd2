"""What is in the files: boxes, fragments, access units, sound, and what a `moov` says about them. Knows no UTC and no volume."""
