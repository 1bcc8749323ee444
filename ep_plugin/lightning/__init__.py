"""Lightning: data, training modules, callbacks, the command line.

**Several GPUs and machines** need only Lightning's own options:

    L.Trainer(accelerator="gpu", devices=4, strategy="ddp")                 # the GPUs of one machine
    L.Trainer(accelerator="gpu", devices=4, num_nodes=2, strategy="ddp")    # started on both, by torchrun or Slurm
    ep-plugin fit --config FILE --trainer.devices 4 --trainer.strategy ddp  # the same from a configuration

What changes:

- `batch_size` is that of one process, so four processes make steps of four times as many images. If the global batch
  stays the same, weights and metrics are those of one process (a test trains in two).
- A sample's relaxation and nudge depend on no other sample. The processes exchange only the gradients, once per step, 4
  bytes per parameter: 1.3 MB for the 2C2FC net, as with BPTT.
- The gradients of everything up to the last neuron are ready at the same time, when the nudged phases end. So the
  exchange cannot overlap with the backward pass, as it would if they came layer by layer.
- `L.seed_everything(seed, workers=True)` gives all processes the same seed: Bernoulli spikes and random signs are then
  the same for the n-th sample of each process.
- A batch norm in the stem sees its own process's images: `Trainer(sync_batchnorm=True)`.
- `strategy="ddp_spawn"` pickles the module. A `ConvergentNetwork` can be pickled unless its activation is a lambda; the
  snnTorch neurons of a `BPTTLightningModule` cannot: use "ddp".
- `precision="bf16-mixed"` computes the products in bfloat16. With "16-mixed" the gradient scaler skips the steps that
  overflow, and warns the first time.
- `precision="bf16-true"` keeps the parameters in bfloat16: stem and readout compute in it; everything between them
  computes in float32, with weights that are rounded. "16-true" needs an optimizer whose numbers float16 can hold: SGD,
  or Adam with an eps of 1e-4, which the default optimizer then has.

**A training that was killed** continues from its last checkpoint. The result is then bit by bit that of a training that
was never interrupted:

    ep-plugin fit --config FILE --ckpt_path lightning_logs/version_0/checkpoints/NAME.ckpt
    trainer.fit(task, data, ckpt_path=...)                                # the same

- This holds for weights, optimizer, logged rows and the lines of `RecordErrors`. It holds for checkpoints at the end of
  an epoch and, with `ModelCheckpoint(every_n_train_steps=100)`, for those within one; on the same machine, with the
  same versions and number of threads.
- The data modules' order of images, and what their augmentation draws, depend only on `seed` and epoch. The checkpoint
  has the states of PyTorch's, NumPy's and Python's random generators, of every process.
- After Ctrl-C or SIGTERM `ep-plugin fit` finishes its batch and keeps it in a checkpoint `stopped-...`; its last line
  shows the command that continues from there. With several processes it stops at once.
- A run that continues logs to a new `version_N`, from the checkpoint on. What the killed run logged after that is there
  twice: `pd.concat(tables).groupby(["epoch", "step"]).last()` has each step once. `CSVLogger` with a `version` that
  exists deletes its file first: do not set `version`.
- *Your own loaders*: the random states are kept, so the end of an epoch is exact if a `DataLoader(shuffle=True)` draws
  from the global generator or Lightning's distributed sampler shuffles. Not kept: the place within an epoch, unless the
  loader has `state_dict` and `load_state_dict`; what worker processes draw; your own generators.
- Not exact either: another number of processes, metrics of `torchmetrics` within an epoch, and rows of
  `log(on_step=True)` for the batch of the checkpoint itself.
- A subclass of `EPLightningModule` with `configure_callbacks` adds its own to what `super()` returns.

Tried on two CPUs (gloo) only. Strategies that shard the parameters, such as FSDP, were not tried.
"""
