"""Training of the embedded model, from public weights and photos to the weights file of the package (`make weights`).

`start` builds the starting weights; `photos`, `own_things` and `vocabulary` define the training photos and their names;
`pseudo_labels` makes masks for photos that have only a class, and `detected` adds what an object detector sees, which
`detector` runs; `network` is the model with gradients. `stages` lists the stages of the training, `batches` makes the
samples, `losses` has the losses of the class maps, `train` is the loop. `looking` encodes photos for the mask decoder,
`self_support` and `mask_decoder` train it, and `together` trains it with the rest of the network. `pack` writes the
file.

Two more programs fit small models on the finished weights: `presence` and `clicks`.
"""
