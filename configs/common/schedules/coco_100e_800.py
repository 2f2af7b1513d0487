"""100 epochs of COCO in batches of 16 (4 GPUs with 4 images each), at half the learning rate."""

from .coco_100e import lr_multiplier, optimizer, train

# 117,266 images / 16 = 7,330 iterations per epoch.
_PER_EPOCH = -(-117266 // 16)

optimizer.lr = 0.004
train.max_iter = 100 * _PER_EPOCH
train.eval_period = train.checkpointer.period = _PER_EPOCH
lr_multiplier.warmup_length = 500 / train.max_iter
