# An EKS managed node group whose nodes pull every image through cacheyd. The user data writes
# /etc/containerd/certs.d/_default/hosts.toml before a node joins, and tells containerd to look there.
#
# cacheyd itself may run on these nodes. Before it runs, nothing listens on the NodePort, and nodes pull from the registries.
# So you may create the node group and cacheyd in any order. 127.0.0.1 needs kube-proxy in iptables mode, the default on EKS.
#
# Nodes get new user data only when they are replaced: a changed launch template rolls the node group.

locals {
  al2023 = startswith(var.ami_type, "AL2023_")

  # config_path belongs to this plugin: see configs/containerd/config-2.x.toml and config-1.x.toml.
  containerd_plugin = (
    local.al2023 && var.containerd_config_version == 3 ? "io.containerd.cri.v1.images" : "io.containerd.grpc.v1.cri"
  )

  user_data = templatefile(
    "${path.module}/templates/user-data-${local.al2023 ? "al2023" : "al2"}.mime.tftpl",
    {
      containerd_plugin = local.containerd_plugin
      hosts_toml = templatefile("${path.module}/templates/hosts.toml.tftpl", {
        node_port = var.cacheyd_node_port
      })
    },
  )
}

resource "aws_launch_template" "cacheyd" {
  name_prefix            = "${var.name}-"
  update_default_version = true

  # Without image_id, EKS picks the image for ami_type, and adds its own part to the user data: that part joins the cluster.
  user_data = base64encode(local.user_data)

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = var.disk_size
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
    # The value that EKS sets: pods without a role of their own reach the role of the node.
    http_put_response_hop_limit = 2
  }

  tag_specifications {
    resource_type = "instance"
    tags          = merge(var.tags, { Name = var.name })
  }

  tags = var.tags

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_eks_node_group" "cacheyd" {
  cluster_name    = var.cluster_name
  node_group_name = var.name
  node_role_arn   = var.node_role_arn
  subnet_ids      = var.subnet_ids

  ami_type       = var.ami_type
  instance_types = var.instance_types

  launch_template {
    id      = aws_launch_template.cacheyd.id
    version = aws_launch_template.cacheyd.latest_version
  }

  scaling_config {
    min_size     = var.scaling.min
    max_size     = var.scaling.max
    desired_size = var.scaling.desired
  }

  update_config {
    max_unavailable = 1
  }

  tags = var.tags

  lifecycle {
    # The autoscaler changes it.
    ignore_changes = [scaling_config[0].desired_size]
  }
}
