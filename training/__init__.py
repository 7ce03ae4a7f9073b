"""How the embedded model's weights are made: from public weights and photos to the file that ships (`make weights`).

`start` puts the starting weights together, `photos` and `vocabulary` say what is shown and how it is called,
`pseudo_labels` finds masks for photos that have only a name, `network` is the model with gradients and its loss,
`train` the loop, and `pack` writes the file.
"""
