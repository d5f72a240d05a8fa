// Finds the owner of a channel, appends three messages there and reads them back. It uses nothing of ours but the stubs that
// protoc-gen-go and protoc-gen-go-grpc make of proto/.
//
//	go run . COORDINATOR CHANNEL      for example 127.0.0.1:53100 by-dev-rootcoord-dml_0
package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"streaming.example/gen/common"
	"streaming.example/gen/messages"
	"streaming.example/gen/streaming"
)

// Name of the cluster (msgChannel.chanNamePrefix.cluster); a server of another one refuses the call.
const cluster = "by-dev"

const collection = 1

func dial(address string) *grpc.ClientConn {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	return connection
}

// findOwner returns the node that owns the channel, and the channel at its present term.
func findOwner(ctx context.Context, coordinator, channel string) (*streaming.StreamingNodeInfo, *streaming.PChannelInfo) {
	connection := dial(coordinator)
	defer connection.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "cluster", cluster)
	stream, err := streaming.NewStreamingCoordAssignmentServiceClient(connection).AssignmentDiscover(ctx)
	check(err)
	defer stream.CloseSend()
	for {
		// The first response is what is assigned now; each later one says what is assigned after a change.
		response, err := stream.Recv()
		check(err)
		for _, assignment := range response.GetFullAssignment().GetAssignments() {
			for _, pchannel := range assignment.Channels {
				if pchannel.Name == channel {
					return assignment.Node, pchannel
				}
			}
		}
	}
}

// opening adds what opens a stream: which channel at which term, and which server it is meant for.
func opening(ctx context.Context, node *streaming.StreamingNodeInfo, name string, request proto.Message) context.Context {
	encoded, err := proto.Marshal(request)
	check(err)
	return metadata.AppendToOutgoingContext(ctx,
		"cluster", cluster,
		"serverid", strconv.FormatInt(node.ServerId, 10),
		name, base64.StdEncoding.EncodeToString(encoded))
}

func vchannel(pchannel *streaming.PChannelInfo) string {
	return fmt.Sprintf("%s_%dv0", pchannel.Name, collection)
}

// insert is one row. Its payload is opaque to the WAL.
func insert(pchannel *streaming.PChannelInfo, text string) *messages.Message {
	header, err := proto.Marshal(&messages.InsertMessageHeader{
		CollectionId: collection,
		Partitions:   []*messages.PartitionSegmentAssignment{{PartitionId: 1, Rows: 1, BinarySize: uint64(len(text))}},
	})
	check(err)
	return &messages.Message{
		Payload: []byte(text),
		Properties: map[string]string{
			"_v":  "1",
			"_t":  strconv.Itoa(int(messages.MessageType_Insert)),
			"_h":  base64.StdEncoding.EncodeToString(header),
			"_vc": vchannel(pchannel),
		},
	}
}

// produce appends each text and waits for its ack: it is durable then. It returns the id of the first.
func produce(ctx context.Context, handler streaming.StreamingNodeHandlerServiceClient, node *streaming.StreamingNodeInfo, pchannel *streaming.PChannelInfo, texts ...string) *common.MessageID {
	stream, err := handler.Produce(opening(ctx, node, "create-producer", &streaming.CreateProducerRequest{Pchannel: pchannel}))
	check(err)
	var first *common.MessageID
	for i, text := range texts {
		request := &streaming.ProduceMessageRequest{RequestId: int64(i + 1), Message: insert(pchannel, text)}
		check(stream.Send(&streaming.ProduceRequest{Request: &streaming.ProduceRequest_Produce{Produce: request}}))
		var ack *streaming.ProduceMessageResponse
		// Beside acks there come `create`, once, and `rate_limit`.
		for ack == nil {
			response, err := stream.Recv()
			check(err)
			ack = response.GetProduce()
		}
		if ack.GetError() != nil {
			log.Fatalf("%s: %v", text, ack.GetError())
		}
		if first == nil {
			first = ack.GetResult().Id
		}
		fmt.Println("appended", text)
	}
	check(stream.Send(&streaming.ProduceRequest{Request: &streaming.ProduceRequest_Close{Close: &streaming.CloseProducerRequest{}}}))
	check(stream.CloseSend())
	for err == nil {
		_, err = stream.Recv()
	}
	return first
}

// consume reads `count` inserts from an id on, that one included.
func consume(ctx context.Context, handler streaming.StreamingNodeHandlerServiceClient, node *streaming.StreamingNodeInfo, pchannel *streaming.PChannelInfo, start *common.MessageID, count int) {
	stream, err := handler.Consume(opening(ctx, node, "create-consumer", &streaming.CreateConsumerRequest{Pchannel: pchannel}))
	check(err)
	defer stream.CloseSend()
	onlyInserts := &streaming.DeliverFilterMessageType{MessageTypes: []messages.MessageType{messages.MessageType_Insert}}
	check(stream.Send(&streaming.ConsumeRequest{Request: &streaming.ConsumeRequest_CreateVchannelConsumer{
		CreateVchannelConsumer: &streaming.CreateVChannelConsumerRequest{
			Vchannel:       vchannel(pchannel),
			DeliverPolicy:  &streaming.DeliverPolicy{Policy: &streaming.DeliverPolicy_StartFrom{StartFrom: start}},
			DeliverFilters: []*streaming.DeliverFilter{{Filter: &streaming.DeliverFilter_MessageType{MessageType: onlyInserts}}},
		},
	}}))
	for count > 0 {
		response, err := stream.Recv()
		check(err)
		if refused := response.GetCreateVchannel().GetError(); refused != nil {
			log.Fatalf("cannot read: %v", refused)
		}
		// Filters let time ticks through: they say how far the channel is.
		message := response.GetConsume().GetMessage()
		if message.GetProperties()["_t"] != strconv.Itoa(int(messages.MessageType_Insert)) {
			continue
		}
		fmt.Println("read", string(message.Payload))
		count--
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: go run . COORDINATOR CHANNEL")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	node, pchannel := findOwner(ctx, os.Args[1], os.Args[2])
	fmt.Fprintf(os.Stderr, "%s is at %s, term %d\n", pchannel.Name, node.Address, pchannel.Term)
	connection := dial(node.Address)
	defer connection.Close()
	handler := streaming.NewStreamingNodeHandlerServiceClient(connection)
	start := produce(ctx, handler, node, pchannel, "one", "two", "three")
	consume(ctx, handler, node, pchannel, start, 3)
}
