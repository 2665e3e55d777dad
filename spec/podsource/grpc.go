package podsource

import (
	"context"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"weir/spec"
)

const (
	// maxAnswer bounds an answer of a gRPC service in bytes, as the kubelet does; maxHeader bounds what comes beside it.
	maxAnswer, maxHeader = 16 << 20, 64 << 10
	// maxText bounds the part of an error's text that is told.
	maxText = 300
)

// dial returns a client of the gRPC service at a socket. It connects with the first call, and names itself
// userAgent.
func dial(socket, userAgent string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///runtime",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: callLimit}).DialContext(ctx, "unix", socket)
		}),
		grpc.WithAuthority("localhost"), grpc.WithUserAgent(userAgent),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0),
		grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
}

// call calls a method that may take callLimit.
func call[In, Out any](ctx context.Context, method func(context.Context, In, ...grpc.CallOption) (Out, error), in In) (Out, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return method(ctx, in)
}

// refused returns an error of a call as it is told. What the other side wrote is cut and cannot control a terminal.
func refused(what string, err error) error {
	s, ok := status.FromError(err)
	if !ok || errors.Is(err, context.Canceled) {
		return err
	}
	text := spec.Clean(s.Message())
	if len(text) > maxText {
		text = spec.Clean(text[:maxText]) + "..."
	}
	switch s.Code() {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return fmt.Errorf("%s: no answer within %v", what, callLimit)
	}
	return fmt.Errorf("%s: %s", what, text)
}
