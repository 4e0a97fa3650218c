"""The model `starter`: a checkpoint with meaning, made on this machine from packages of the Python index.

`store.made` returns its folder and makes it at first use. Only `recipe` and its parts import the packages.
"""

NAME = "starter"
NOTE = "It knows common things and scenes, and English only. It is not CLIP, and not for production."
