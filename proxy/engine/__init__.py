"""The relay engine: how established connections are carried, and why in this way.

The work of a sidecar is to move bytes between two descriptors of a connection, with TLS on one of
them. Most connections do nothing most of the time; the busy ones do something small often (a
request, an answer) or something large at a stretch. A trio task for each direction of each
connection is the plain way to write that down (proxy.plain_relay does), and costs for each message
two passes of the scheduler, two re-armed waits and several exceptions: more than the kernel,
OpenSSL and the interpreter need for the bytes. So established connections are not tasks here.

Loops
-----
All connections of a process are in one epoll (`pump`). Each descriptor is registered once, level-
triggered, and modified only when what is wanted of it changes: an ordinary message costs a share
of one epoll_wait, a read, a write, and no registration. Who turns that loop is somebody else's
matter (`loops`): in production the pump waits, and trio is called when something of trio's is
due; in tests and embedded it is a task in trio. The code between is the same.

    trio tasks:    accept → sniff → handshake → dial → relay() ........ sleeps ........ → log line
                                                         │                                ↑
    pump:                                              joint: read, write, read, write, done

A connection is still a trio task, one that sleeps: it set the connection up, it can be cancelled
(which is how policy changes and shutdown end a connection), and it does what takes time at the end.
Nothing of a task's comfort is given up; only the bytes do not pass through it.

Buffers
-------
Every read goes into one scratch buffer of the process and is written from there before anything
else is read, so an idle connection owns none; OpenSSL gives back its own (RELEASE_BUFFERS).
What the kernel refuses to take is copied and kept with the connection (`unsent`), and from then on
the other side is not read: that is all of backpressure. A connection can thus hold back at most one
chunk for each direction.

Small traffic and bulk
----------------------
Small messages: OpenSSL works on the descriptor itself. One call from Python reads, decrypts and
returns a message. Bulk: through memory, 256 KiB with one system call, where the record layer by
itself would make two for each 16 KiB. A connection changes over when full chunks keep coming and
back when they do not (`mesh.openssl`). Plain ends only change the size of their reads.

States
------
An end is `over` (nothing more will come) and possibly `broken` (with the reason). From these, what
is `unsent` and how far each end was told about the other's, `Joint._settle` derives everything:
what to watch, what to pass on, and whether all is done. It is called when something out of the
ordinary happened, and may be called at any time.

    clean:   app over → peer told (close_notify) ┐
             peer over → app told (FIN)          ┴→ done: close both
    broken:  what the broken side still holds is read and delivered → done: wait until the healthy
             side's kernel has acknowledged it, then reset both

Invariants, each with tests
---------------------------
1. Nothing rests in the scratch buffer between two events.
2. A side with something unsent is never written to but by `flush`, and its other side not read.
3. After `read` no decrypted byte is left inside OpenSSL: what epoll does not show does not exist.
4. Close_notify is sent once, after everything else.
5. The first side to break names the failure; an alert that comes later may replace the reason.
6. A descriptor leaves the epoll before its task may close it, and events are only handled between
   the turns of tasks: a stale event cannot meet a reused number.
7. An event that cannot be acted upon (a hang-up of a paused side) takes the side out of the epoll
   until something is wanted of it again: a level-triggered epoll would spin.

Fairness
--------
An event moves at most 256 KiB, a batch is at most 64 events, and between two batches trio has its
turn if it wants one. Epoll hands out ready descriptors in rotation. New connections cost far more
than messages do (a handshake is most of a millisecond): handshakes get a millisecond in each pass
of trio's scheduler (`mesh.turnstile`), and the pump comes between any two tasks if it has not had
a turn for half a millisecond. So a message waits for one step of one task, not for a storm.
"""
