"""A bus without sockets, for tests: `SimNet` joins the real cores of broker and clients under a clock that you move.

    net = SimNet()
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"hello")
    net.settle()
    assert bob.bodies == [b"hello"]
    bob.take_all()
    net.settle()
    assert alice.answers[msg_id].state == State.DELIVERED

Everything that travels is encoded and decoded, and nothing happens by itself: the same calls give the same run.
"""

from zmqbus.testing.simclient import SimClient
from zmqbus.testing.simnet import ManualClock, SimNet, session_id_of

__all__ = ["ManualClock", "SimClient", "SimNet", "session_id_of"]
