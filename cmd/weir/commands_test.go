package main_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/backends/netlab"
	"weir/backends/netlab/podmantest"
	"weir/spec/apisource/apitest"
)

// A machine is a node on which the commands of a page are run as a reader types them, in one directory. Below /etc, /run, /srv,
// /var/lib and /usr/local/bin it has files of its own.
type machine struct {
	*daemon
	work string
	bin  string
	// inside is the process that holds the machine's mounts.
	inside *exec.Cmd
	weir   *exec.Cmd
}

func newMachine(t *testing.T, pods int) *machine {
	lab := netlab.New(t, netlab.Topology{Pods: pods})
	netlab.RequireRoot(t, "mount directories over those of the system")
	m := &machine{daemon: newDaemon(t, lab, modeNamed(t, "nftables")), work: t.TempDir(), bin: t.TempDir()}
	m.giveEtc(map[string]string{"resolv.conf": "nameserver 192.0.2.1\n", "hosts": "127.0.0.1 localhost\n"})
	if err := os.Symlink(os.Getenv(binaryEnv), filepath.Join(m.bin, "weir")); err != nil {
		t.Fatal(err)
	}
	ready := filepath.Join(t.TempDir(), "ready")
	mounts := m.mounts() + fmt.Sprintf("for d in run srv var/lib; do mount -t tmpfs none /$d; done && mount --bind %s /usr/local/bin && touch %s && exec sleep infinity", m.bin, ready)
	m.inside = lab.Node().Command(context.Background(), "unshare", "--mount", "--propagation", "private", "sh", "-c", mounts)
	m.inside.Stdout, m.inside.Stderr = m.log, m.log
	if err := lab.Node().Start(m.inside); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.endWeir(); _ = m.inside.Process.Kill(); _ = m.inside.Wait() })
	m.await("the mounts", func() error { _, err := os.Stat(ready); return err })
	return m
}

// command returns one of the shell, in the machine.
func (m *machine) command(ctx context.Context, line string) *exec.Cmd {
	cmd := m.lab.Node().Command(ctx, "nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", m.inside.Process.Pid), "sh", "-e", "-c", "cd "+m.work+"\n"+line)
	cmd.Env = slices.DeleteFunc(cmd.Env, func(v string) bool { return strings.HasPrefix(v, "RUNTIME_DIRECTORY=") })
	cmd.Env = append(cmd.Env, "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/srv/home", "ANSIBLE_VAULT_PASSWORD_FILE=/srv/password")
	return cmd
}

// try runs a line of the shell to its end, and returns what it prints.
func (m *machine) try(line string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	cmd := m.command(ctx, line)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := m.lab.Node().Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), err
}

// prepare runs what a page takes for granted.
func (m *machine) prepare(line string) {
	m.t.Helper()
	if out, err := m.try(line); err != nil {
		m.t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// put writes files into the machine; a relative path is one of its working directory.
func (m *machine) put(files map[string]string) {
	m.t.Helper()
	for name, text := range files {
		cmd := m.command(m.t.Context(), fmt.Sprintf("mkdir -p $(dirname %[1]s) && cat > %[1]s", name))
		cmd.Stdin = strings.NewReader(text)
		err := m.lab.Node().Start(cmd)
		if err == nil {
			err = cmd.Wait()
		}
		if err != nil {
			m.t.Fatalf("%s: %v", name, err)
		}
	}
}

// enter runs a line as a reader does, who looks for a text in what it prints: `weir run` goes on in another terminal until the
// next one, and what asks it is asked again until it has read its input.
func (m *machine) enter(line, want string) (out string, err error) {
	m.t.Helper()
	if dir, changes := strings.CutPrefix(line, "cd "); changes {
		m.work = filepath.Join(m.work, dir)
		return "", nil
	}
	if strings.HasPrefix(line, "weir run") {
		m.endWeir()
		m.weir = m.command(m.t.Context(), "exec "+line)
		m.weir.Stdout, m.weir.Stderr = m.log, m.log
		if err := m.lab.Node().Start(m.weir); err != nil {
			return "", err
		}
		line = "weir status"
	}
	asks := slices.ContainsFunc([]string{"curl ", "weir status", "weir discover", "weir dns lookup", "weir probe"}, func(p string) bool { return strings.HasPrefix(line, p) })
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if out, err = m.try(line); err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("it does not print %q", want)
		}
		if err == nil || !asks || time.Now().After(deadline) {
			return out, err
		}
	}
}

func (m *machine) endWeir() {
	if m.weir != nil {
		_ = m.weir.Process.Signal(os.Interrupt)
		_ = m.weir.Wait()
		m.weir = nil
	}
}

// runPodman gives the machine podman, with an image that stands for nginx.
func (m *machine) runPodman() {
	m.t.Helper()
	if err := os.CopyFS(filepath.Join(m.etc, "containers"), os.DirFS("/etc/containers")); err != nil {
		m.t.Fatal(err)
	}
	p := podmantest.New(m.t, func(cmd *exec.Cmd) error {
		enter := m.command(context.Background(), "")
		cmd.Args = append(append(enter.Args[:2:2], cmd.Path), cmd.Args[1:]...)
		cmd.Path = enter.Path
		return m.lab.Node().Start(cmd)
	})
	p.Serve(m.t)
	p.Import(m.t, "docker.io/library/nginx", 80)
	podman := p.Command(m.t.Context())
	var script strings.Builder
	script.WriteString("#!/bin/sh\n")
	for _, v := range podman.Env {
		if strings.HasPrefix(v, "CONTAINERS_CONF=") {
			fmt.Fprintf(&script, "export %s\n", v)
		}
	}
	fmt.Fprintf(&script, "exec %s %s \"$@\"\n", podman.Path, strings.Join(podman.Args[1:], " "))
	m.put(map[string]string{"/usr/local/bin/podman": script.String()})
	m.prepare("chmod +x /usr/local/bin/podman && mkdir -p /run/podman && ln -s " + p.Socket + " /run/podman/podman.sock")
}

// runRepository makes the working directory a checkout of edge/cluster on git.example.org, with these files.
func (m *machine) runRepository(files map[string]string) {
	m.t.Helper()
	m.put(map[string]string{"/etc/gitconfig": `[user]
name = a
email = a@example.org
[safe]
directory = *
[init]
defaultBranch = main
[url "file:///srv/git.git"]
insteadOf = git@git.example.org:edge/cluster.git
`})
	m.prepare("git init -q --bare /srv/git.git && git clone -q git@git.example.org:edge/cluster.git .")
	m.put(files)
	m.prepare("git add . && git commit -q -m first && git push -q origin HEAD:main HEAD:canary && git fetch -q")
}

// aSlice is an EndpointSlice of a Service, with the first pod.
func aSlice(namespace, service string) string {
	return fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %[2]s-1, namespace: %[1]s, labels: {kubernetes.io/service-name: %[2]s}}\n"+
		"addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [%[3]s], targetRef: {kind: Pod, name: client, namespace: %[1]s}}]\n", namespace, service, netlab.PodIPv4(1))
}

func aService(namespace, name, more string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: %s%s}\nspec: {ports: [{port: 80}]}\n---\n", name, namespace, more)
}

// readme returns the manifests of the README.
func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, yaml, _ := strings.Cut(string(text), "```yaml\n")
	yaml, _, _ = strings.Cut(yaml, "```\n")
	return yaml
}

// typed are the pages that show commands, and what their reader has.
var typed = []struct {
	page string
	pods int
	has  func(m *machine)
	// prints are texts that commands must print.
	prints map[string]string
	// elsewhere are commands that no such machine can run, by how they begin, and the test that runs them, or why there is none.
	elsewhere map[string]string
}{
	{page: "README.md", has: func(m *machine) {
		m.runPodman()
		m.put(map[string]string{"app.yaml": readme(m.t)})
	}, prints: map[string]string{"curl http": "hello-pod-0", "weir status hello": "healthy since", "weir discover": "hello-pod-0"},
		elsewhere: map[string]string{"dpkg -i": "TestRelease", "systemctl": "it needs systemd as the first process, which TestRelease boots"}},
	{page: "examples/README.md", has: func(m *machine) {
		if err := os.CopyFS(m.work, os.DirFS("../../examples")); err != nil {
			m.t.Fatal(err)
		}
	}},
	{page: "examples/fleet/README.md", pods: 1, has: func(m *machine) {
		m.runRepository(map[string]string{"cluster/web.yaml": aService("default", "web", "") + aSlice("default", "web"),
			"nodes.yaml": "apiVersion: v1\nkind: Node\nmetadata: {name: node}\n"})
		if err := os.CopyFS(m.work, os.DirFS("../../examples/fleet")); err != nil {
			m.t.Fatal(err)
		}
		m.put(map[string]string{"fleet.conf": "[Service]\n", "known_hosts": "", "/etc/pam.d/runuser": "auth sufficient pam_rootok.so\nsession required pam_permit.so\n",
			"/srv/password": "secret\n"})
		m.prepare("echo weir-pull:x:990:990::/srv/weir:/bin/sh >> /etc/passwd; echo weir-pull:x:990: >> /etc/group; mkdir -p /srv/weir && chown weir-pull: /srv/weir")
		if out, err := m.enter("weir run -f cluster", "default/web"); err != nil {
			m.t.Fatalf("%v\n%s", err, out)
		}
	}, prints: map[string]string{"weir plan -f cluster": "git origin/main", "ansible-vault": "weir_deploy_key: !vault"},
		elsewhere: map[string]string{"dpkg -i": "TestRelease", "systemctl": "it needs systemd as the first process, which TestRelease boots",
			"ssh-keyscan": "it asks git.example.org", "ssh-keygen -lf": "it reads what git.example.org answered",
			"ansible-playbook": "TestAnsible", "promtool": "TestRules", "git ": "TestRolloutAndRollback", "runuser -u weir-pull -- git": "TestRolloutAndRollback", "weir doctor": "TestDoctor"}},
	{page: "examples/fleet/signed-commits.md", pods: 1, has: func(m *machine) {
		m.runRepository(map[string]string{"web.yaml": aService("default", "web", "") + aSlice("default", "web")})
		m.put(map[string]string{"/etc/weir/weir.yaml": "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nallowedSigners: /etc/weir/allowed_signers\n"})
		m.prepare(`mkdir -p ~/.ssh && ssh-keygen -q -t ed25519 -N "" -f ~/.ssh/id_ed25519
			echo "alice@example.org namespaces=\"git\" $(cat ~/.ssh/id_ed25519.pub)" > /etc/weir/allowed_signers
			git config --system gpg.ssh.allowedSignersFile /etc/weir/allowed_signers
			git -c gpg.format=ssh -c user.signingKey=~/.ssh/id_ed25519.pub commit -q -S --allow-empty -m signed && git push -q origin HEAD:main
			git clone -q --branch main git@git.example.org:edge/cluster.git /srv/weir/current`)
	}, prints: map[string]string{"weir run": "signed by alice@example.org", "weir validate": "signed by alice@example.org", "weir status": "signed by alice@example.org"}},
	{page: "spec/README.md", pods: 1, has: func(m *machine) {
		s := newNodeAPI(m.t, m.lab)
		s.createService(webService10())
		s.setSlice(podSlice("web-1", "web", 1))
		kubeconfig, err := os.ReadFile(s.kubeconfig(s.Address))
		if err != nil {
			m.t.Fatal(err)
		}
		const config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\nclusterCIDR: 10.244.0.0/16\n"
		api := config + "clientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}\n"
		m.put(map[string]string{"/var/lib/kube-proxy/kubeconfig.conf": string(kubeconfig), "/var/lib/kube-proxy/config.conf": api, "kube-proxy.conf": api,
			"/etc/weir/config.yaml": api, "kube-proxy.yaml": config, "services/shop.yaml": aService("default", "shop", ""), "slices.yaml": aSlice("default", "shop"),
			"/srv/git/cluster/web.yaml": aService("default", "web", "") + aSlice("default", "web")})
	}, prints: map[string]string{"weir run --config": "default/web", "weir run -f services/": "default/shop", "weir run -f /etc/weir --api": "default/web", "weir reconcile": "2 unchanged"}},
	{page: "spec/podsource/README.md", has: func(m *machine) {
		m.runPodman()
		m.put(map[string]string{"app.yaml": readme(m.t)})
	}, prints: map[string]string{"weir discover": "hello-pod-0"}},
	{page: "spec/liveness/README.md", pods: 1, has: func(m *machine) {
		m.lab.Host("pod1").Serve(m.t, netlab.TCP, 80)
		m.put(map[string]string{"web.yaml": aService("default", "web", `, annotations: {weir/probe: "{tcpSocket: {port: 80}, periodSeconds: 1}"}`) + aSlice("default", "web")})
		if out, err := m.enter("weir run -f web.yaml", "default/web"); err != nil {
			m.t.Fatalf("%v\n%s", err, out)
		}
	}, prints: map[string]string{"weir status web": netlab.PodIPv4(1).String(), "weir probe web": netlab.PodIPv4(1).String()}},
	{page: "backends/dns/README.md", pods: 1, has: func(m *machine) {
		m.lab.Node().AddAddress(m.t, netip.MustParseAddr("10.244.0.1"))
		m.put(map[string]string{"/etc/weir/web.yaml": aService("default", "web", "") + aSlice("default", "web") + "---\n" + aService("shop", "web", "") + aSlice("shop", "web")})
	}, prints: map[string]string{"weir dns zone": "web.default.svc.cluster.local.", "weir dns lookup": "web."}},
	{page: "cmd/weir/README.md", pods: 1, has: func(m *machine) {
		m.runRepository(map[string]string{"cluster/web.yaml": aService("default", "web", "") + aSlice("default", "web"),
			"cluster/weir.yaml": "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\n",
			"nodes.yaml":        "apiVersion: v1\nkind: Node\nmetadata: {name: node}\n", "schemas/keep": ""})
		if err := os.Symlink(apitest.Binary(m.t, "kubeconform"), filepath.Join(m.bin, "kubeconform")); err != nil {
			m.t.Fatal(err)
		}
		if out, err := m.enter("weir run -f cluster", "default/web"); err != nil {
			m.t.Fatalf("%v\n%s", err, out)
		}
	}, prints: map[string]string{"weir explain dns.listen": "FIELD: listen", "kubeconform": ""}},
}

// TestCommandsOfPages runs the commands that the pages show, in their order.
func TestCommandsOfPages(t *testing.T) {
	found := shownCommands(t)
	for _, of := range typed {
		commands := found[of.page]
		delete(found, of.page)
		t.Run(of.page, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, of.pods)
			of.has(m)
			ran := 0
			for _, c := range commands {
				if slices.ContainsFunc(slices.Collect(maps.Keys(of.elsewhere)), func(begin string) bool { return strings.HasPrefix(c.text, begin) }) {
					continue
				}
				ran++
				want := ""
				for begin, text := range of.prints {
					if strings.HasPrefix(c.text, begin) {
						want = text
					}
				}
				if out, err := m.enter(c.text, want); err != nil {
					t.Errorf("%s:%d: %s: %v\n%s", of.page, c.line, c.text, err, out)
				}
			}
			if ran == 0 {
				t.Error("the page shows no command")
			}
		})
	}
	for page, commands := range found {
		t.Errorf("%s:%d: no test runs %s", page, commands[0].line, commands[0].text)
	}
}

// shown is a command of a page.
type shown struct {
	line int
	text string
}

// shownCommands returns the commands of all pages in their order, by the page. Those of make are targets, which TestPages looks for.
func shownCommands(t *testing.T) map[string][]shown {
	t.Helper()
	programs := regexp.MustCompile(`^(weir [a-z]+( |$)|(curl|podman|dpkg|systemctl|install|runuser|git|ssh-keygen|ssh-keyscan|cd|ansible\S*|promtool|kubeconform|ip|nft|iptables) )`)
	all := map[string][]shown{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2:
			return filepath.SkipDir
		case filepath.Ext(path) != ".md" || strings.Contains(path, "/testdata/") && filepath.Dir(path) != "../../testdata":
			return nil
		}
		text, err := os.ReadFile(path)
		for i, line := range strings.Split(string(text), "\n") {
			if line, block := strings.CutPrefix(line, "    "); block && programs.MatchString(strings.TrimSpace(line)) {
				page := strings.TrimPrefix(path, "../../")
				all[page] = append(all[page], shown{i + 1, strings.TrimSpace(line)})
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
