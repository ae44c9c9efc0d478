# The machines of a laboratory, from the file "machines" beside its Vagrantfile. scripts/lab reads the same file.
#
# The tree is expected to be built for them: target/release/cygnet is installed on the gateways, by the role of ansible/.

require "securerandom"

def lab(config, directory)
  name = File.basename(directory)
  # All gateways need the same key. It is made once, beside this file, and never leaves the laboratory.
  key = File.join(__dir__, ".lab.psk")
  File.write(key, "#{SecureRandom.hex(32)}\n", perm: 0o600) unless File.exist?(key)

  config.vm.box = "debian/bookworm64"
  config.vm.synced_folder "../..", "/vagrant", type: "rsync", rsync__exclude: [".git/", "target/debug/", ".lab/"]

  lines = File.readlines(File.join(directory, "machines"), encoding: "UTF-8").reject { |line| line =~ /^\s*(#|$)/ }
  lines.each do |line|
    machine, nets, how, *args = line.split
    config.vm.define machine do |vm|
      vm.vm.hostname = machine
      nets.split(",").map { |net| net.split("=") }.each do |net, address|
        vm.vm.network "private_network", ip: address, netmask: "255.255.255.0", virtualbox__intnet: "#{name}-#{net}",
                                         libvirt__network_name: "#{name}-#{net}", libvirt__dhcp_enabled: false
      end
      if how == "role"
        vm.vm.provision "ansible_local" do |ansible|
          ansible.compatibility_mode = "2.0"
          ansible.config_file = "/vagrant/ansible/ansible.cfg"
          ansible.playbook = "/vagrant/vagrant/gateway.yml"
          ansible.inventory_path = "/vagrant/vagrant/#{name}/hosts.yml"
          ansible.limit = machine
          ansible.become = true
        end
      else
        vm.vm.provision "shell", path: "../provision/#{how}", args: args
      end
    end
  end
end
