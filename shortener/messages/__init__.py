"""The way in: the pipeline's texts are checked, their URLs found and exchanged for short links."""
