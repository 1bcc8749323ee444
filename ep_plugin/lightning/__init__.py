"""Lightning: data, training modules, callbacks, the command line.

**Several GPUs and machines** need nothing but Lightning's own options:

    L.Trainer(accelerator="gpu", devices=4, strategy="ddp")                 # the GPUs of one machine
    L.Trainer(accelerator="gpu", devices=4, num_nodes=2, strategy="ddp")    # started on both, by torchrun or Slurm
    ep-plugin fit --config FILE --trainer.devices 4 --trainer.strategy ddp  # the same from a configuration

What it means:

- `batch_size` is that of one process, so four of them make steps of four times as many images. With
  the global batch kept, the weights and metrics are those of one process (a test trains in two).
- A sample's relaxation and nudge depend on no other sample. The only exchange is that of the
  gradients, once a step, of 4 bytes a parameter: 1.3 MB for the 2C2FC net, as with BPTT.
- The gradients of everything up to the last neuron are ready at once, when the nudged phases end. So
  their exchange is not hidden behind the backward pass, as it would be layer by layer.
- `L.seed_everything(seed, workers=True)` seeds all processes alike: Bernoulli spikes and random signs
  are then the same for the n-th sample of each.
- A batch norm in the stem sees its own process's images: `Trainer(sync_batchnorm=True)`.
- `strategy="ddp_spawn"` pickles the module. A `ConvergentNetwork` does pickle unless its activation is
  a lambda; the snnTorch neurons of a `BPTTLightningModule` do not: use "ddp".
- `precision="bf16-mixed"` computes the products in bfloat16. With "16-mixed" the gradient scaler skips
  the steps that overflow, with a warning from the first.
- `precision="bf16-true"` keeps the parameters in bfloat16: stem and readout compute in it, and what lies
  between in float32, by weights that are rounded. "16-true" needs an optimizer whose numbers float16 can
  hold: SGD, or Adam with an eps of 1e-4, which is the default one's then.

**A training that was killed** goes on from its last checkpoint, and is then bit by bit the one that was never
interrupted:

    ep-plugin fit --config FILE --ckpt_path lightning_logs/version_0/checkpoints/NAME.ckpt
    trainer.fit(task, data, ckpt_path=...)                                # the same

- So are weights, optimizer, logged rows and the lines of `RecordErrors`, from checkpoints of an epoch's end and, with
  `ModelCheckpoint(every_n_train_steps=100)`, from within one; on the same machine, versions and number of threads.
- The data modules' order of images, and what their augmentation draws, are functions of `seed` and epoch. The
  checkpoint has the states of PyTorch's, NumPy's and Python's random generators, of every process.
- Ctrl-C and SIGTERM let `ep-plugin fit` finish its batch, which it keeps in a checkpoint `stopped-...`; its last line
  has the command that goes on from there. With several processes it stops at once.
- A run that goes on logs to a new `version_N`, from the checkpoint on; what the killed one logged after that is there
  twice: `pd.concat(tables).groupby(["epoch", "step"]).last()` has each step once. `CSVLogger` with a `version` that is
  there deletes its file first: leave `version` out.
- *Loaders of your own*: the random states are kept, so an epoch's end is exact where a `DataLoader(shuffle=True)` draws
  from the global generator or Lightning's distributed sampler shuffles. Not kept: the place within an epoch, unless the
  loader has `state_dict` and `load_state_dict`; what worker processes draw; generators of your own.
- Not exact either: other numbers of processes, metrics of `torchmetrics` within an epoch, and rows of
  `log(on_step=True)` for the batch of the checkpoint itself.
- A subclass of `EPLightningModule` with `configure_callbacks` adds its own to what `super()` returns.

Tried on two CPUs (gloo) only. Strategies that shard the parameters, such as FSDP, were not tried.
"""
