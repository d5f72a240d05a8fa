"""Finds the owner of a channel, appends three messages there and reads them back. It uses nothing of ours but the stubs that
`grpcio-tools` makes of proto/.

    produce_consume.py COORDINATOR CHANNEL      for example 127.0.0.1:53100 by-dev-rootcoord-dml_0
"""

import base64
import queue
import sys

import grpc
import messages_pb2 as messages
import streaming_pb2 as streaming
import streaming_pb2_grpc as services

# Name of the cluster (msgChannel.chanNamePrefix.cluster); a server of another one refuses the call.
CLUSTER = "by-dev"
SECONDS = 30
COLLECTION = 1


class Requests:
    """What is sent on a stream, until it is closed."""

    def __init__(self):
        self._queue = queue.Queue()

    def send(self, request):
        self._queue.put(request)

    def close(self):
        self._queue.put(None)

    def __iter__(self):
        return iter(self._queue.get, None)


def find_owner(coordinator, channel):
    """(the node that owns the channel, the channel at its present term)."""
    requests = Requests()
    with grpc.insecure_channel(coordinator) as connection:
        stub = services.StreamingCoordAssignmentServiceStub(connection)
        # The first response is what is assigned now; each later one says what is assigned after a change.
        for response in stub.AssignmentDiscover(iter(requests), timeout=SECONDS, metadata=[("cluster", CLUSTER)]):
            for assignment in response.full_assignment.assignments:
                for pchannel in assignment.channels:
                    if pchannel.name == channel:
                        requests.close()
                        return assignment.node, pchannel
    raise SystemExit(f"nobody serves {channel}")


def headers(node, name, request):
    """Metadata that opens a stream: which channel at which term, and which server it is meant for."""
    encoded = base64.b64encode(request.SerializeToString()).decode()
    return [("cluster", CLUSTER), ("serverid", str(node.server_id)), (name, encoded)]


def insert(pchannel, text):
    """An insert of one row. Its payload is opaque to the WAL."""
    payload = text.encode()
    partition = messages.PartitionSegmentAssignment(partition_id=1, rows=1, binary_size=len(payload))
    header = messages.InsertMessageHeader(collection_id=COLLECTION, partitions=[partition])
    return messages.Message(
        payload=payload,
        properties={
            "_v": "1",
            "_t": str(messages.MessageType.Insert),
            "_h": base64.b64encode(header.SerializeToString()).decode(),
            "_vc": f"{pchannel.name}_{COLLECTION}v0",
        },
    )


def produce(connection, node, pchannel, texts):
    """Appends each text and waits for its ack: it is durable then. Returns the id of the first."""
    requests = Requests()
    opening = headers(node, "create-producer", streaming.CreateProducerRequest(pchannel=pchannel))
    stub = services.StreamingNodeHandlerServiceStub(connection)
    responses = stub.Produce(iter(requests), timeout=SECONDS, metadata=opening)
    first = None
    for number, text in enumerate(texts, 1):
        requests.send(streaming.ProduceRequest(produce=streaming.ProduceMessageRequest(request_id=number, message=insert(pchannel, text))))
        # Beside acks there come `create`, once, and `rate_limit`.
        ack = next(response.produce for response in responses if response.HasField("produce"))
        if ack.HasField("error"):
            raise SystemExit(f"{text}: {ack.error}")
        first = first or ack.result.id
        print(f"appended {text}")
    requests.send(streaming.ProduceRequest(close=streaming.CloseProducerRequest()))
    requests.close()
    for _ in responses:
        pass
    return first


def consume(connection, node, pchannel, start, count):
    """Reads `count` inserts from an id on, that one included."""
    requests = Requests()
    opening = headers(node, "create-consumer", streaming.CreateConsumerRequest(pchannel=pchannel))
    only_inserts = streaming.DeliverFilterMessageType(message_types=[messages.MessageType.Insert])
    requests.send(
        streaming.ConsumeRequest(
            create_vchannel_consumer=streaming.CreateVChannelConsumerRequest(
                vchannel=f"{pchannel.name}_{COLLECTION}v0",
                deliver_policy=streaming.DeliverPolicy(start_from=start),
                deliver_filters=[streaming.DeliverFilter(message_type=only_inserts)],
            )
        )
    )
    stub = services.StreamingNodeHandlerServiceStub(connection)
    for response in stub.Consume(iter(requests), timeout=SECONDS, metadata=opening):
        if response.create_vchannel.HasField("error"):
            raise SystemExit(f"cannot read: {response.create_vchannel.error}")
        # Filters let time ticks through: they say how far the channel is.
        message = response.consume.message
        if message.properties.get("_t") != str(messages.MessageType.Insert):
            continue
        print(f"read {message.payload.decode()}")
        count -= 1
        if not count:
            requests.close()
            return


def main():
    coordinator, channel = sys.argv[1:]
    node, pchannel = find_owner(coordinator, channel)
    print(f"{channel} is at {node.address}, term {pchannel.term}", file=sys.stderr)
    with grpc.insecure_channel(node.address) as connection:
        start = produce(connection, node, pchannel, ["one", "two", "three"])
        consume(connection, node, pchannel, start, 3)


main()
