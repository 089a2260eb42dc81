variable "name" {
  description = "Name of the node group, and the start of the launch template's name."
  type        = string
  default     = "cacheyd"
}

variable "cluster_name" {
  description = "The EKS cluster that the nodes join."
  type        = string
}

variable "node_role_arn" {
  description = "IAM role of the nodes (AmazonEKSWorkerNodePolicy, AmazonEKS_CNI_Policy, AmazonEC2ContainerRegistryPullOnly)."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets that the nodes are started in."
  type        = list(string)
}

variable "ami_type" {
  description = "EKS image type: one of AL2023_… or AL2_…. EKS publishes no new AL2 images since November 2025."
  type        = string
  default     = "AL2023_x86_64_STANDARD"

  validation {
    condition     = can(regex("^AL2(023)?_", var.ami_type))
    error_message = "Only Amazon Linux 2023 (AL2023_…) and Amazon Linux 2 (AL2_…) take this user data."
  }
}

variable "containerd_config_version" {
  description = <<-EOT
    AL2023: the version of the settings of the image's containerd. 3 is right for containerd 2.x, which all current images
    have. Images with containerd 1.x need 2; with 3, their nodes would not join. AL2 always has 2.
  EOT
  type        = number
  default     = 3

  validation {
    condition     = contains([2, 3], var.containerd_config_version)
    error_message = "Either 2 (containerd 1.x) or 3 (containerd 2.x)."
  }
}

variable "cacheyd_node_port" {
  description = "nodePort of the Service in configs/kubernetes/cacheyd.yaml."
  type        = number
  default     = 30123

  validation {
    condition     = var.cacheyd_node_port >= 1 && var.cacheyd_node_port <= 65535
    error_message = "A port."
  }
}

variable "instance_types" {
  description = "Instance types of the nodes."
  type        = list(string)
  default     = ["m6i.large"]
}

variable "disk_size" {
  description = "Size of a node's root volume in GiB. The emptyDir of cacheyd is on it, too."
  type        = number
  default     = 100
}

variable "scaling" {
  description = "Number of nodes."
  type = object({
    min     = number
    max     = number
    desired = number
  })
  default = {
    min     = 1
    max     = 3
    desired = 2
  }
}

variable "tags" {
  description = "Tags for everything that this module makes."
  type        = map(string)
  default     = {}
}
