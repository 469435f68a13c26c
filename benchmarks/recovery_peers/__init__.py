"""What people use today to survive the loss of a worker, each set up as its documentation says.

All train a model with 4 MB of gradients whose forward pass takes 30 ms (``workload.py``; ours the same model over a
dataset), a worker a host, one thread each. A tool is two modules: ``*_side.py`` starts it and tells it of losses,
``*_worker.py`` (``ours_model.py``, ``ray_train_job.py``) is what its user would write, and leaves stamps. Settings,
and why:

ours        As by default: heartbeats every 0.5 s, 4 of them missed. Workers that are lost start again by themselves.
torchft     A lighthouse, and a replica a host under torchrun, which starts it again
            (https://docs.pytorch.org/torchft). Heartbeats count for 2 s, as long as ours (5 s by default); the same
            for collectives and requests (60 s); stragglers are waited for 1 s (60 s; its README: 10 s). A batch that
            failed is dropped, and the global batch shrinks with the replicas. The nightly release: in 0.2.0 an
            assertion ends the survivors too when a peer dies in a reduction. Has no announced loss.
ray_train   TorchTrainer, 1 to 3 workers, looking every 5 s for more (60 s by default), failures without limit, a
            checkpoint of the whole state every 25 steps, about a second. It restarts all workers from it; steps that
            were done again do not count. Gloo's time-out is 10 s, its controller looks every 0.5 s (2 s). Upon a drain
            it saves at the next multiple of 25 steps, as documented for ``get_preemption_info``, and restarts when the
            host goes, at the end of the notice of 30 s; "drain" is that restart. Ray itself calls a cut node dead
            after about a minute, here as by default.
            https://docs.ray.io/en/latest/train/user-guides/fault-tolerance.html
horovod     ``horovodrun`` with a discovery script, ``horovod.torch.elastic`` with a commit after every step, hosts of
            failed workers left out for 1 to 2 s only. Gloo's time-out is 10 s (30 s by default): all of a
            rendezvous must have started by then, and it is how long a silent peer is waited for. The script does not
            know that a host is cut, as one that asks a cloud would not. An announced loss is a host that the script
            no longer lists; it is asked once a second. Not our own wheel, which speaks to our own rendezvous server:
            ``--stock`` names a folder with Horovod as it is released (see ``benchmarks.reform``).
            https://horovod.readthedocs.io/en/stable/elastic_include.html

A host that is announced to go away loses power 30 s later, if it is still used then. A tool that does no new step for
300 s has "inf" in the table, and why on stderr.
"""
