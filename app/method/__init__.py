"""The method of arXiv 2503.10779, "The Power of One", as plain torch. Imports nothing else of `app`.

Start at `pipeline.py`: the whole chain on one screen. Axis letters, used in every
signature here and in `app.backbones`:

    prompt  P   one phrase given to the text tower        head   H   an attention head
    token   T   a word piece of a prompt                  layer  L   a text layer with cross-attention
    patch   N   a cell of the image tower's grid          class  C   background (0) and every category asked for
"""
