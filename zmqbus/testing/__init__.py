"""A simulated bus for tests: `SimNet` connects the real cores of broker and clients, without sockets, files or time.

    net = SimNet()
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"hello")
    net.settle()
    assert bob.bodies == [b"hello"]
    bob.take_all()
    net.settle()
    assert alice.answers[msg_id].state == State.DELIVERED

Every envelope is encoded and decoded as on the wire. Nothing is delivered and no time passes until the test says so,
so the same calls always give the same run. `SimNet` also injects faults: lost broadcasts, broken connections, stopped
processes, failing disks, and the death of the broker between any two steps of a wake.
"""

from zmqbus.testing.simclient import SimClient
from zmqbus.testing.simnet import ManualClock, SimNet, session_id_of

__all__ = ["ManualClock", "SimClient", "SimNet", "session_id_of"]
