package probe

import (
	"context"
	"crypto/tls"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// grpc asks for the health of a service. Success is SERVING.
func (p *Probe) grpc(c *connection) Result {
	creds := insecure.NewCredentials()
	if p.TLS {
		creds = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})
	}
	options := []grpc.DialOption{
		grpc.WithUserAgent(userAgent),
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.dial(ctx) }),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableHealthCheck(), grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(maxBody)),
	}
	if p.Authority != "" {
		options = append(options, grpc.WithAuthority(p.Authority))
	}
	conn, err := grpc.NewClient("passthrough:///"+c.at.String(), options...)
	if err != nil {
		return unknown(err.Error())
	}
	defer conn.Close()
	res, err := grpc_health_v1.NewHealthClient(conn).Check(c.ctx, &grpc_health_v1.HealthCheckRequest{Service: p.Service})
	switch code := status.Code(err); {
	case err == nil && res.Status == grpc_health_v1.HealthCheckResponse_SERVING:
		return success(res.Status.String())
	case err == nil:
		return failure(res.Status.String())
	case code == codes.Unimplemented:
		return failure("the server does not implement grpc.health.v1.Health: " + status.Convert(err).Message())
	case code == codes.DeadlineExceeded:
		return failure("no answer within " + p.Timeout.String())
	default:
		return failure(status.Convert(err).Message())
	}
}
