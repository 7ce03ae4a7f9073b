"""How the embedded model's weights are made: from public weights and photos to the file that ships (`make weights`).

`start` puts the starting weights together, `photos` and `vocabulary` say what is shown and how it is called,
`pseudo_labels` finds masks for photos that have only a name, `network` is the model with gradients. `stages` lists what
is learned in which order, `batches` makes the samples, `losses` says what the class maps are trained for, `train` is
the loop; `looking`, `self_support` and `mask_decoder` learn the mask decoder, `together` all of it at once. `pack`
writes the file.
"""
