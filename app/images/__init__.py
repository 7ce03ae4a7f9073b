"""A caller's bytes and JSON → photos and masks. Imports `app.masks` and `app.errors`, nothing else of `app`.

`photo` reads a photo, `masks` reads a mask in each form that a caller may send, `files` decodes image files for both.
Input that can't be read is refused with an `AppError`: one sentence that names the field and says what to send.
"""
