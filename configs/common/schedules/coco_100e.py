"""100 epochs of COCO in batches of 32, by SGD."""

from fvcore.common.param_scheduler import MultiStepParamScheduler

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler

# 117,266 images / 32 = 3,665 iterations per epoch.
_PER_EPOCH = -(-117266 // 32)

optimizer = model_zoo.get_config("common/optim.py").SGD
# At 32 images; scale it linearly with the batch.
optimizer.lr = 0.008
optimizer.params.weight_decay_norm = 1e-4

train = model_zoo.get_config("common/train.py").train
train.init_checkpoint = "torchvision://resnet50"
train.max_iter = 100 * _PER_EPOCH
train.eval_period = train.checkpointer.period = _PER_EPOCH
train.seed = -1
train.micro_batch_size = 0

lr_multiplier = L(WarmupParamScheduler)(
    # Milestones in epochs; only their ratio counts.
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[75, 95, 100]),
    warmup_length=500 / train.max_iter,
    warmup_method="linear",
    warmup_factor=0.001,
)
