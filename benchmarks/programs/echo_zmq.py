"""A ZeroMQ REP socket that sends back whatever comes. It prints its port.

python echo_zmq.py
"""

import zmq

with zmq.Context() as context, context.socket(zmq.REP) as socket:
    print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    while True:
        socket.send(socket.recv())
