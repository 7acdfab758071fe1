"""The commands of `clamu`, a file for one or for two that belong together.

demo        `demo`: the whole story on handwritten digits
train       `train` and `plan`: a build as a recipe says, and what it will need
merge       `merge`: local models that were finetuned elsewhere
unmerge     `unmerge`: forget tasks
add         `add` and `update`: tasks that come, and tasks that get other rows
inspection  `info` and `verify`: what a saved model is, and whether it is what a build gives
predict     `predict`: answers
evaluate    `evaluate`: how well a model serves its tasks
export      `export`: a plain transformers checkpoint
hub         `push` and `erase`
proofs/     what owners and auditors check
"""
